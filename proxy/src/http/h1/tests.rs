//! Parsers against tables and against noise.
