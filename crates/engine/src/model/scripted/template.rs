//! What stands in double braces in a script's texts.

use serde_json::Value;

use super::view::View;

/// Replaces `{{user}}`, `{{last_result}}`, `{{result:N}}` (from 1; from the end when negative) and `{{step}}` (replies so
/// far). Other braces stay as they are: commands are full of them. What is put in is not looked at again.
pub(super) fn fill(text: &str, view: &View<'_>) -> String {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find("{{") {
        let (before, after) = rest.split_at(open);
        filled.push_str(before);
        let inner = &after[2..];
        let found = inner.find("}}").and_then(|close| Some((value(inner[..close].trim(), view)?, close)));
        match found {
            Some((value, close)) => {
                filled.push_str(&value);
                rest = &inner[close + 2..];
            }
            None => {
                // One brace only: `{{{user}}` holds a name behind its second one.
                filled.push('{');
                rest = &after[1..];
            }
        }
    }
    filled.push_str(rest);
    filled
}

/// The same for every text inside a value.
pub(super) fn fill_value(value: &Value, view: &View<'_>) -> Value {
    match value {
        Value::String(text) => Value::String(fill(text, view)),
        Value::Array(items) => items.iter().map(|item| fill_value(item, view)).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), fill_value(value, view))).collect(),
        other => other.clone(),
    }
}

/// A result that is not there is an empty text.
fn value(name: &str, view: &View<'_>) -> Option<String> {
    let result = |index: Option<usize>| {
        index.and_then(|index| view.results.get(index)).map(|result| result.text.to_string()).unwrap_or_default()
    };
    let count = view.results.len();
    Some(match name {
        "user" => view.last_user().to_owned(),
        "step" => view.replies.to_string(),
        "last_result" => result(count.checked_sub(1)),
        _ => {
            let number: i64 = name.strip_prefix("result:")?.trim().parse().ok()?;
            let magnitude = usize::try_from(number.unsigned_abs()).ok()?;
            result(if number < 0 { count.checked_sub(magnitude) } else { magnitude.checked_sub(1) })
        }
    })
}
