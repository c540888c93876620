"""Sessions of users outside the rounds of a platform: what Gymnasium environments step."""
