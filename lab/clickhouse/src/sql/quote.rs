//! Text as SQL: quoted so that nothing in it can end the quote.

pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

pub(crate) fn identifier(text: &str) -> String {
    format!("`{}`", text.replace('\\', "\\\\").replace('`', "\\`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_backslashes_cannot_end_the_quote() {
        assert_eq!(literal(r"a'b\"), r"'a\'b\\'");
        assert_eq!(identifier(r"a`b\'"), r"`a\`b\\'`");
    }
}
