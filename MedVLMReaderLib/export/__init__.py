"""Reports and heatmaps in the formats of archives: DICOM, FHIR, PDF, text."""
