"""What a spec holds, as values: groups, axis maps, pins; reading, writing, checking, printing and pinning them."""
