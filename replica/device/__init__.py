"""What lies between the scheduler's plans and a network: arrays, block tables, graphs, memory."""
