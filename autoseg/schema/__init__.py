"""What is on disk: every record that autoseg writes, and where. Reading this folder is knowing autoseg."""
