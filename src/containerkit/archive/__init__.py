"""Directory trees and their archives: extract untrusted archives, write and compress them."""
