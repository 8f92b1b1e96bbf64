//! pilot.
