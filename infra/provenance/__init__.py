"""Where a result comes from: the fingerprint of its settings and inputs, the version of the code."""
