"""What the GDPR gives the people behind the data: erasure with proof, a copy of everything, records."""
