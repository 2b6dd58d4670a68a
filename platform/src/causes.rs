//! The causes of an error, in words.

use std::error::Error;

/// The error and its causes, but for those that a message before has said already.
///
/// Libraries such as `reqwest` leave the causes out of their own message.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn each_cause_is_said_once() {
        let inner = anyhow::anyhow!("address in use");
        let error = inner.context("listen on 127.0.0.1:1: address in use").context("start");
        let text = "start: listen on 127.0.0.1:1: address in use";
        assert_eq!(with_causes(error.as_ref()), text);
        let error = Err::<(), _>(anyhow::anyhow!("address in use"))
            .context("listen on 127.0.0.1:1")
            .unwrap_err();
        assert_eq!(with_causes(error.as_ref()), "listen on 127.0.0.1:1: address in use");
    }
}
