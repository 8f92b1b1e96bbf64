//! End-to-end tests of the whole mesh, and the sample application that they and newcomers drive through it.
//!
//! [`bookinfo`] is the sample; its manifests are in `e2e/bookinfo/`. The tests in `tests/it` start `biremectl local`
//! ([`mesh`]) and look at the mesh as its users do: with HTTP requests ([`load`]) and with the command line ([`console`]).
//! [`echo`] is the workload of the tests of who gets through.

pub mod bookinfo;
pub mod console;
pub mod echo;
pub mod load;
pub mod memory;
pub mod mesh;
