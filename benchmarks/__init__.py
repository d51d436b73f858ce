"""Speed and memory, as ratios against peers in the same run. Each module prints one table and writes
`benchmarks/results/NAME.json`.
"""
