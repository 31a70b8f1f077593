"""Many runs read: records, tables, plots, significance, the page of the report."""
