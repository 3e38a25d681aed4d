"""What every room may use and none is about: files, tables, pictures, pages, errors."""
