//! xDS: who asks for what, and what he is sent when.
//!
//! A change comes to [`discovery`], is debounced, becomes a push context and a [`push`] request for every connection. Each
//! connection ([`stream`]; state of the world or increments) makes the resources it has asked for with [`generate`] (and [`Cache`]), compares
//! them with what it has sent ([`watch`], [`sent`]), and sends what differs ([`frame`]), in the order CDS, EDS, LDS, RDS. [`debug`] shows all of it.

pub mod access;
pub mod admission;
pub mod authenticate;
mod cache;
pub mod connection;
pub mod debug;
mod delta;
pub mod discovery;
mod form;
mod frame;
pub mod generate;
pub mod name;
pub mod push;
pub mod resource_type;
pub mod sent;
pub mod server;
mod state_of_the_world;
pub mod stream;
pub mod watch;

pub use cache::Cache;
pub use connection::Connection;
pub use discovery::Discovery;
pub use resource_type::ResourceType;
