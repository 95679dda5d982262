"""Parts of the modules for frameworks. Import these modules themselves: their names do not move."""
