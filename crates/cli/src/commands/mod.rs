//! One file per command.

pub(crate) mod agents;
pub(crate) mod backup;
pub(crate) mod bench;
pub(crate) mod checkpoints;
pub(crate) mod completions;
pub(crate) mod cp;
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod drivers;
pub(crate) mod egress;
pub(crate) mod environments;
pub(crate) mod exec;
pub(crate) mod forward;
pub(crate) mod images;
pub(crate) mod keys;
pub(crate) mod live;
pub(crate) mod preview;
pub(crate) mod ps;
pub(crate) mod run;
pub(crate) mod sandbox;
pub(crate) mod sandboxes;
pub(crate) mod server;
pub(crate) mod sessions;
pub(crate) mod ssh;
pub(crate) mod up;
pub(crate) mod vault;
pub(crate) mod worker;

use serde_json::Value;

use crate::output::plain;

/// Text of an object's field, safe to show; empty when it is not there.
fn text(object: &Value, field: &str) -> String {
    plain(object[field].as_str().unwrap_or_default()).into_owned()
}

/// The time of an object's field, to the second.
fn time(object: &Value, field: &str) -> String {
    let full = text(object, field);
    full.get(..19).map_or_else(|| full.clone(), |head| format!("{}Z", head.replace('T', " ")))
}

/// An object as indented `field: value` lines, in the order in which it came.
fn describe(object: &Value) -> String {
    let mut lines = Vec::new();
    if let Value::Object(fields) = object {
        let width = fields.keys().map(|name| name.chars().count()).max().unwrap_or(0);
        for (name, value) in fields {
            let value = value.as_str().map_or_else(|| value.to_string(), |text| plain(text).into_owned());
            lines.push(format!("{name:width$}  {value}"));
        }
    }
    lines.join("\n")
}
