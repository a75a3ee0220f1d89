"""What a node writes down about itself: the ledger, requests that wait for a second person, alarms, evidence."""
