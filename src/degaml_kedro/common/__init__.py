"""What every folder uses: errors, seeds, progress, and files that are written whole or not at all."""
