//! Pilot as its clients see it: what is generated (golden), and what streams are sent.

mod ads;
mod golden;
mod mesh;
