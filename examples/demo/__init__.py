"""The tour: everything the service does, on a real model, through the public client."""
