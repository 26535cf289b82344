"""The command line `viewdiff`: arguments, help, and which function a command calls."""
