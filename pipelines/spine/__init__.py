"""What every stage shares: folders named by fingerprints, locks, records, the settings of the machine."""
