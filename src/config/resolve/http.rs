//! The section `http`: which names and web pages reach the API, and how many connections.

use std::{fmt::Display, str::FromStr};

use super::memory::table;
use crate::{
    config::reader::{Errors, Table},
    modes::Http,
};

pub const HTTP_KEYS: [&str; 3] = ["hosts", "origins", "max_connections"];

/// A wrong value is reported and stands as its default: nothing is made of it afterwards.
pub fn http(root: &Table, errors: &mut Errors) -> Http {
    let Some(table) = table(root, "http", &HTTP_KEYS, errors) else { return Http::default() };
    let max_connections = table
        .get("max_connections")
        .and_then(|field| field.whole_number(1..=Http::MAX_CONNECTIONS, errors));
    Http {
        hosts: list(&table, "hosts", errors),
        origins: list(&table, "origins", errors),
        max_connections: max_connections.unwrap_or(Http::default().max_connections),
    }
}

fn list<T: FromStr<Err: Display>>(table: &Table, key: &str, errors: &mut Errors) -> Vec<T> {
    let items = table.get(key).and_then(|field| field.items(errors)).unwrap_or_default();
    let items = items.iter().filter_map(|item| {
        item.text(errors)?; // 'parsed' would take the number 1 for a name
        item.parsed(errors)
    });
    items.collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::{
        config::{raw, resolve::resolve},
        modes::Http,
    };

    fn read(section: &str) -> Result<Http, String> {
        let text = format!(
            "model_root: m\ndefault_mode: a\nmodes: {{a: {{model: x}}}}\nhttp: {section}\n"
        );
        let root = raw::parse(&text).unwrap();
        let resolved = resolve(&root, Path::new("m.yaml").into(), Path::new("/home/x"));
        resolved
            .map(|resolved| resolved.modes.http)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn what_is_not_said_holds_and_what_is_wrong_is_said() {
        assert_eq!(read("").unwrap(), Http::default());
        assert_eq!(read("{hosts: [], origins: }").unwrap(), Http::default());
        let http =
            read("{hosts: [Studio.lan.], origins: ['https://a.example:443'], max_connections: 9}");
        let expected = Http {
            hosts: vec!["studio.lan".parse().unwrap()],
            origins: vec!["https://a.example".parse().unwrap()],
            max_connections: 9,
        };
        assert_eq!(http.unwrap(), expected);
        let wrong = "{hosts: ['http://x', '*', 7, x:1], origins: ['*', 'null', 'https://a/b', a], \
                     max_connections: 0, port: 1}";
        insta::assert_snapshot!(read(wrong).unwrap_err(), @r"
        m.yaml:4:16: error: http.hosts[0]: 'http://x' is not a host name: write it as in studio.example.com, without a scheme or a port
        m.yaml:4:28: error: http.hosts[1]: '*' is not a host name: write it as in studio.example.com, without a scheme or a port
        m.yaml:4:33: error: http.hosts[2]: expected text, found the number 7; put it in quotes
        m.yaml:4:36: error: http.hosts[3]: 'x:1' is not a host name: write it as in studio.example.com, without a scheme or a port
        m.yaml:4:52: error: http.origins[0]: '*' would let every web page use this daemon: list the origins, as in https://studio.example.com
        m.yaml:4:57: error: http.origins[1]: 'null' is the origin of sandboxed pages and files of anybody: it cannot be told from others
        m.yaml:4:65: error: http.origins[2]: 'https://a/b' is not an origin: write scheme://host[:port], as in https://studio.example.com, without a path
        m.yaml:4:80: error: http.origins[3]: 'a' is not an origin: write scheme://host[:port], as in https://studio.example.com, without a path
        m.yaml:4:101: error: http.max_connections: 0 is not between 1 and 10000
        m.yaml:4:104: error: http.port: unknown key (known keys: hosts, origins, max_connections)
        ");
    }
}
