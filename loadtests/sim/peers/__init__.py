"""Other routers' policies, each as its source has it, for comparison in virtual time."""
