//! Sources: where objects come from. Each is a task that sends [`Event`](crate::event::Event)s to the processor.
//!
//! [`mod@file`]: a folder of YAML files. [`mod@kube`]: the Kubernetes API server. [`mesh_file`]: the mesh's own settings.

pub mod file;
pub mod kube;
pub mod mesh_file;
