//! How a receiver knows that a webhook is ours: HMAC-SHA256 of the body (RFC 2104). Pure.

use std::fmt::Write;

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// `sha256=` and the code in hexadecimal digits.
pub fn sign(secret: &str, body: &[u8]) -> String {
    let mut signature = "sha256=".to_owned();
    // A key of any length is a key.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else { return signature };
    mac.update(body);
    for byte in mac.finalize().into_bytes() {
        let _ = write!(signature, "{byte:02x}"); // a String takes all
    }
    signature
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231, test cases 2 and 6 (a key longer than a block; its bytes are 0xaa, which is no
    /// UTF-8, so the second one is by Python's `hmac` of the same text with 131 letters 'a').
    #[test]
    fn signatures_are_the_standards() {
        for (secret, body, expected) in [
            (
                "Jefe".to_owned(),
                "what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                "a".repeat(131),
                "Test Using Larger Than Block-Size Key - Hash Key First",
                "d021303c2f34bf3ae541b4ec9c672691694c6f71c5c0c55781545a66115b14a7",
            ),
        ] {
            assert_eq!(sign(&secret, body.as_bytes()), format!("sha256={expected}"));
        }
    }
}
