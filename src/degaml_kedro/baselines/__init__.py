"""The methods that the product is compared with: one file a method, one verb to meta-train and one to adapt."""
