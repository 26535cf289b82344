"""What a call of the network costs, told without computing it: floating-point operations and memory (of the networks of
the paper, section 3).

`products.py` says what is counted, `network.py` and `volumes.py` list it for a network, `flops.py` adds it up.
`memory.py` runs the network on tensors without values.
"""
