"""The network as an application of Ray Serve."""
