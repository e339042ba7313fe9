"""The lab: an embedded world of restaurant reviews with a gold reward, for demos and tests that download nothing."""
