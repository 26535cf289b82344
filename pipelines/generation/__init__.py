"""Generation of one object: what is asked, the network that answers, the pictures that come out."""
