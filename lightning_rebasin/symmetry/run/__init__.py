"""Running somebody's model without touching it: example inputs, Lightning's steps without a trainer, private copies."""
