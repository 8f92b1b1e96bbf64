//! Transformers: objects in force → collections. Each is pure and decides what it can take over from the last result.
//!
//! [`direct`]: mesh objects as they are. [`service_entry`]: Kubernetes services with their endpoints as `ServiceEntry`s,
//! which is how Pilot learns of services. [`ingress`]: Kubernetes' `Ingress`. [`pods`]: who they are, for Mixer.
//! [`mesh_config`]: the mesh's settings.

pub mod direct;
pub mod ingress;
pub mod mesh_config;
pub mod pods;
pub mod service_entry;
