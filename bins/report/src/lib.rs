//! Stage `report`: figures and one page from the artifacts of any number of runs.
//!
//! [`run`] reads a run by its links, [`group`] puts runs together that differ in their seeds alone, [`figures`] says what
//! is drawn and [`figure`] draws it, [`table`] is the table, [`page`] the page.
//! [`bench`] is a table of its own, of what benches have measured.

pub mod axis;
pub mod bench;
pub mod figure;
pub mod figures;
pub mod group;
pub mod lettering;
pub mod links;
pub mod page;
pub mod palette;
pub mod read;
pub mod report;
pub mod results;
pub mod run;
pub mod samples;
pub mod table;

pub use report::Report;
