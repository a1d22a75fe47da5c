"""The hospital workflow: films arrive from the PACS as DICOM, and results go back into the same study."""
