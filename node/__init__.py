"""One running node: what a national CERT installs, over the pure rules of `federation`."""
