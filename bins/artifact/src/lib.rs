//! What is in a store of artifacts: listing it, showing one artifact or a whole run, verifying every byte, and removing
//! what no run needs any more, and exporting what other programs open.

pub mod export;
pub mod fid;
pub mod gc;
pub mod list;
pub mod show;
pub mod store;
pub mod summary;
pub mod verify;

pub use lcf_store::text;
