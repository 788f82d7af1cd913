"""What everything stands on: forward-mode products, operations of rules, checks, the machine."""
