"""Reports: records to Markdown, tables, figures and statistics; nothing here needs torch."""
