"""What joins vault with other programs and their formats. Nothing below imports from here."""
