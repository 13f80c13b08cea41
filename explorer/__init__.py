"""The explorer: a page that shows which expert a router chose for every token, while the model writes."""
