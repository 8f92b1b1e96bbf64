//! pilot-ctl.
