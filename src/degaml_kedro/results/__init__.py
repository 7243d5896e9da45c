"""What predictions amount to: measures with their uncertainty, and the table a person reads."""
