"""What training reads of the .bin/.idx files: checked, blended, cut into batches."""
