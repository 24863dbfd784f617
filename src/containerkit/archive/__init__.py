"""Directory trees and their archives: extracted without trust in their content, written, compressed."""
