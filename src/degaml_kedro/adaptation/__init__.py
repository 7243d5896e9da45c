"""What one adaptation is made of, apart from the computing: its budget, its progress, its report, its folder."""
