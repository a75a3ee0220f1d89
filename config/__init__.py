"""Settings of a node, and the data packs that it decides by. Only `node.main` reads this package."""
