//! ClickHouse's tokens, over bytes: a statement may hold strings that are not UTF-8.
//!
//! An unterminated string, identifier or comment reaches to the end of the text; the engine's
//! parser says what is wrong with it.

use std::ops::Range;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// A keyword or a bare identifier.
    Word,
    /// `"…"` or `` `…` ``.
    QuotedIdentifier,
    /// `'…'` or `$tag$…$tag$`.
    String,
    Number,
    Punctuation(u8),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) span: Range<usize>,
}

pub(super) struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a [u8], at: usize) -> Self {
        Self { text, at }
    }

    /// Where the next token is sought.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    fn skip_blanks(&mut self) {
        loop {
            self.at = self.end_of_run(|byte| byte.is_ascii_whitespace() || byte == 0x0b);
            let rest = &self.text[self.at..];
            let line =
                rest.starts_with(b"--") || rest.starts_with(b"# ") || rest.starts_with(b"#!");
            if line {
                self.at = self.end_of(b"\n", self.at);
            } else if rest.starts_with(b"/*") {
                self.at = self.end_of(b"*/", self.at + 2);
            } else {
                return;
            }
        }
    }

    /// Where `needle`, sought from `from` on, ends; the end of the text when it is not there.
    fn end_of(&self, needle: &[u8], from: usize) -> usize {
        let found = self.text[from..].windows(needle.len()).position(|window| window == needle);
        found.map_or(self.text.len(), |offset| from + offset + needle.len())
    }

    /// Where the quoted token that begins here ends: a backslash takes the next byte along, a
    /// doubled quote is a quote.
    fn end_of_quoted(&self, quote: u8) -> usize {
        let mut at = self.at + 1;
        while let Some(&byte) = self.text.get(at) {
            let doubled = byte == quote && self.text.get(at + 1) == Some(&quote);
            if byte == b'\\' || doubled {
                at += 2;
            } else if byte == quote {
                return at + 1;
            } else {
                at += 1;
            }
        }
        self.text.len()
    }

    /// The `$tag$` that begins here, if one does.
    fn heredoc_tag(&self) -> Option<&'a [u8]> {
        let rest = &self.text[self.at..];
        let length = rest.iter().skip(1).position(|&byte| !is_word(byte) || byte == b'$')? + 1;
        (rest[length] == b'$').then(|| &rest[..=length])
    }

    fn token_end(&mut self, first: u8) -> (TokenKind, usize) {
        match first {
            b'\'' => (TokenKind::String, self.end_of_quoted(first)),
            b'"' | b'`' => (TokenKind::QuotedIdentifier, self.end_of_quoted(first)),
            b'$' => match self.heredoc_tag() {
                Some(tag) => (TokenKind::String, self.end_of(tag, self.at + tag.len())),
                None => (TokenKind::Punctuation(first), self.at + 1),
            },
            b'0'..=b'9' => {
                (TokenKind::Number, self.end_of_run(|byte| is_word(byte) || byte == b'.'))
            }
            _ if is_word(first) => (TokenKind::Word, self.end_of_run(is_word)),
            _ => (TokenKind::Punctuation(first), self.at + 1),
        }
    }

    fn end_of_run(&self, belongs: impl Fn(u8) -> bool) -> usize {
        let length = self.text[self.at..].iter().position(|&byte| !belongs(byte));
        length.map_or(self.text.len(), |length| self.at + length)
    }
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        self.skip_blanks();
        let start = self.at;
        let &first = self.text.get(start)?;
        let (kind, end) = self.token_end(first);
        self.at = end;
        Some(Token { kind, span: start..end })
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<(TokenKind, &str)> {
        Lexer::new(text.as_bytes(), 0).map(|token| (token.kind, &text[token.span])).collect()
    }

    #[test]
    fn quotes_hold_escapes_and_doubled_quotes() {
        use TokenKind::*;
        assert_eq!(
            tokens(r#"'it''s' 'a\'b' `x``y` "q\"w" z"#),
            [
                (String, "'it''s'"),
                (String, r"'a\'b'"),
                (QuotedIdentifier, "`x``y`"),
                (QuotedIdentifier, r#""q\"w""#),
                (Word, "z")
            ]
        );
    }

    #[test]
    fn comments_are_no_tokens() {
        let words: Vec<_> = tokens("a -- b\nc /* d ; 'e */ f # g\nh #! i")
            .into_iter()
            .map(|(_, text)| text)
            .collect();
        assert_eq!(words, ["a", "c", "f", "h"]);
    }

    #[test]
    fn a_heredoc_is_one_string() {
        use TokenKind::*;
        assert_eq!(
            tokens("$$it's$$ $t$ $$ $t$;"),
            [(String, "$$it's$$"), (String, "$t$ $$ $t$"), (Punctuation(b';'), ";")]
        );
    }

    #[test]
    fn what_is_not_closed_reaches_to_the_end() {
        for text in ["'a b", "`a", "$x$ a $x", "'a\\"] {
            assert_eq!(tokens(text).len(), 1, "{text}");
        }
        assert_eq!(tokens("/* a").len(), 0);
    }

    #[test]
    fn numbers_and_words_part_at_punctuation() {
        use TokenKind::*;
        assert_eq!(
            tokens("1.5e3,0xff t1.a"),
            [
                (Number, "1.5e3"),
                (Punctuation(b','), ","),
                (Number, "0xff"),
                (Word, "t1"),
                (Punctuation(b'.'), "."),
                (Word, "a")
            ]
        );
    }
}
