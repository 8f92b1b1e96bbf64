//! The admin interface's HTTP server.

use crate::{args::Options, bootstrap::{AdminAddress, Bootstrap}, config::ConfigStore};
use std::{path::Path, sync::Arc};

/// What the handlers look at.
pub(crate) struct Admin {
    pub(super) store: Arc<ConfigStore>,
    pub(super) bootstrap: Arc<Bootstrap>,
}

impl Admin {
    pub(crate) fn new(store: Arc<ConfigStore>, bootstrap: Arc<Bootstrap>, _options: &Options) -> Self {
        Self { store, bootstrap }
    }
}

pub(crate) async fn start(_admin: Arc<Admin>, _address: &AdminAddress, _path: Option<&Path>) -> anyhow::Result<()> {
    Ok(())
}
