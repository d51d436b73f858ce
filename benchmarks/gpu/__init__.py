"""Our engine and trainer on a GPU, beside transformers and PEFT on the same one."""
