"""The demonstration behind `./dev run`: a state folder, photographs, and the real daemon on loopback."""
